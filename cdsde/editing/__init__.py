"""Editing of latents, as compositions of the same parts; arrays in, arrays out."""
