"""The mathematics of editing latents: inversion, editors, guidance; arrays in, arrays out."""
