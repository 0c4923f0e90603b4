"""Images and video to codes, codes to sequences, sequences to a GPT, and back."""
