"""The mathematics: arrays in, arrays out. Nothing here uses a config, a path, a mesh or a file."""
