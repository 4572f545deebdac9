"""Files of weights that others wrote, in the words of Hugging Face."""
