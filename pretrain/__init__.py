"""How the shipped encoder was made: text files → a small pretrained BERT, as one command."""
