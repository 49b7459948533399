"""What travels: a model as named blocks, compressed, and the plan of a round."""
