"""Services that every program uses: devices, pre-emption, logs, progress, records of results."""
