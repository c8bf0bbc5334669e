"""The scorers once more, written from their descriptions and by other means than the package's: a second opinion on every pair."""
import math
import string


def relaxed(prediction, references, tolerance=.05):
    "ChartQA: both are numbers and the reference is not zero: a relative difference of at most 5%; else equal letters"
    def number(s):
        shares = len(s) - len(s.rstrip("%")) > 0
        try: v = float(s.rstrip("%") if shares else s)
        except ValueError: return None
        return v/100.0 if shares else v
    def one(p, t):
        x, y = number(p), number(t)
        if x is None or y is None or y == 0: return p.lower() == t.lower()
        if math.isnan(x) or math.isnan(y) or math.isinf(y): return False  # every comparison with what comes out is false
        return not math.isinf(x) and abs(x - y)/abs(y) <= tolerance
    return 1.0 if any(one(prediction.strip(), r) for r in references) else 0.0


def distance(s, t):
    "Edit distance, row by row"
    row = list(range(len(t) + 1))
    for i, a in enumerate(s, 1):
        left, row[0] = row[0], i
        for j, b in enumerate(t, 1): left, row[j] = row[j], left if a == b else 1 + min(left, row[j], row[j - 1])
    return row[-1]


def anls(prediction, references):
    "InfographicVQA: blanks collapsed and lower case for the distance, the longer raw text in upper case for the length"
    def loss(r):
        plain = [" ".join(w for w in s.lower().split()) for s in (r, prediction)]
        length = max(len(s.upper()) for s in (r, prediction))
        return distance(*plain)/length if length else 0.0
    best = 1 - min(loss(r) for r in references)
    return best if best >= .5 else 0.0


def words(text):
    "SQuAD's words: lower case, punctuation dropped letter by letter, articles dropped as runs of word characters"
    kept = [c for c in text.lower() if c not in string.punctuation]
    out, run = [], []
    for c in [*kept, " "]:
        if c.isalnum() or c == "_": run.append(c); continue
        out += [" "] if "".join(run) in ("a", "an", "the") else run
        out.append(c)
        run = []
    return "".join(out).split()


def overlap(p, r):
    "F1 of two lists of words, shared ones counted off one by one"
    rest, same = list(r), 0
    for w in p:
        if w in rest: rest.remove(w); same += 1
    return 2*(same/len(p))*(same/len(r))/(same/len(p) + same/len(r)) if same else 0.0


def em(prediction, references): return float(any(words(prediction) == words(r) for r in references))


def f1(prediction, references): return max(overlap(words(prediction), words(r)) for r in references)


def screenqa(prediction, references):
    "SQA-S: the special string counts only when it is said letter by letter"
    said, known = prediction == "<no answer>", [r for r in references if r != "<no answer>"]
    if said: return (1.0, 1.0) if len(known) < len(references) else (0.0, 0.0)
    return (em(prediction, known), f1(prediction, known)) if known else (0.0, 0.0)


def rouge_l(prediction, references):
    "F-measure of the longest common subsequence of runs of ASCII letters and digits"
    split = lambda s: "".join(c if c in string.ascii_lowercase + string.digits else " " for c in s.lower()).split()
    def one(p, r):
        common = [[0]*(len(r) + 1) for _ in range(len(p) + 1)]
        for i, a in enumerate(p):
            for j, b in enumerate(r): common[i + 1][j + 1] = common[i][j] + 1 if a == b else max(common[i][j + 1], common[i + 1][j])
        n = common[-1][-1]
        return 2*(n/len(p))*(n/len(r))/(n/len(p) + n/len(r)) if n else 0.0
    return max(one(split(prediction), split(r)) for r in references)


def bleu(prediction, references):
    "Sentence BLEU of texts that are words and blanks: clipped n-grams, exponential smoothing, only the orders that the prediction has"
    p, refs = prediction.split(), [r.split() for r in references]
    if not p: return 0.0
    grams = lambda ws, n: [tuple(ws[i:i + n]) for i in range(len(ws) - n + 1)]
    logs, halves = [], 1
    for n in range(1, min(4, len(p)) + 1):
        mine = grams(p, n)
        hit = sum(min(mine.count(g), max(grams(r, n).count(g) for r in refs)) for g in set(mine))
        if not hit and n == 1: return 0.0
        if not hit: halves *= 2
        logs.append(math.log(hit/len(mine) if hit else 1/(halves*len(mine))))
    near = min((abs(len(r) - len(p)), len(r)) for r in refs)[1]
    return min(1.0, math.exp(min(0.0, 1 - near/len(p)) + sum(logs)/len(logs)))
