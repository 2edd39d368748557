"""What every other package uses: files, random numbers, images, progress, errors."""
