"An OCR engine for tests: it says what it can see of a picture at once, and fails on pictures that it is told to fear."
import numpy as np

from r3nb.ocr import OCRResult


class Toy:
    name, version = "toy", "1"
    def __init__(self, fear=""): self.fear = fear
    def __call__(self, image):
        if self.fear and image.size[0] == int(self.fear): raise RuntimeError("too wide")
        a = np.asarray(image.convert("RGB")).astype(int)
        return OCRResult(f"Total {a.mean():.0f}  grey\n{a.std():.0f}", round(float(a.std()) / 128, 4), [])


class Blind:
    name, version = "blind", "1"
    def __call__(self, image): return OCRResult("", 0.0, [])
