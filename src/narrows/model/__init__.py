"""What is learnt: the slots of an autoencoder, and the recipes that fill them."""
