"""The online half: answers classification requests over HTTP from a bundle."""
