"""Round planning under energy limits: batteries, radio links, and the allocation."""
