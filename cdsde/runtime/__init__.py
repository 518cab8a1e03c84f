"""What every program stands on: devices, pre-emption, logs, progress, records of results."""
