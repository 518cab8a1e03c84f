"""The mathematics: arrays in, arrays out. Nothing here knows a config, a path, a mesh or a file."""
