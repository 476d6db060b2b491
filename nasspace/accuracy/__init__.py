"""What a network's accuracy is: data sets held in memory, and training for a budget."""
