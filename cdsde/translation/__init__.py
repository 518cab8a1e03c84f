"""`--mode=sample`: translate the images of one domain into another."""
