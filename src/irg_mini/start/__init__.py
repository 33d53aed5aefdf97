"""The model that training starts from: fresh, or a smaller one carried over."""
