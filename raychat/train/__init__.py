"""The one loop, what stages do around it, and the sizes that follow from depth."""
