"""What every other room uses: files, random numbers, images, progress, errors, signals, the Hub's refusals."""
