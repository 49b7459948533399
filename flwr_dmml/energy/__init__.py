"""What devices are, spend and have left; the radio between them."""
