"""Does the slow work beside the live way: claims, re-attribution, erasure."""
