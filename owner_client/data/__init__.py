"""What only the owner does with private text: removing duplicates, counting, holding out documents, mixing with public text."""
