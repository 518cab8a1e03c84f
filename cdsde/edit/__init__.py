"""`--mode=edit`: change images by words with a latent diffusion model."""
