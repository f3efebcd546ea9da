"""Data: sources, the prepared dataset, the plan of which rows make which batch, and the feed that brings them."""
