"""How each fine-tune of BAGEL reasons, looks at its images and is guided, and the texts it was trained with."""
