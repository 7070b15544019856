"""Stand-ins for what a test machine lacks."""


class Eager:
    "Called again instead of replayed: what a recording must equal."
    def __init__(self, f, like):
        self.f = f
        self.replay()

    def replay(self): self.out = self.f()
