"""``Traced``, in place of ``Replay``: as on a device, but what was traced runs as it is, so that not a bit may differ."""

from __future__ import annotations

from bnn_pyro.inductor import trace_in_place

made = []


class Traced:
    """Traced by the first call; what the others run is the graph alone."""

    def __init__(self, function, device, fuses):
        assert fuses
        self.function, self.graph = function, None
        made.append(self)

    def __call__(self):
        if self.graph is None:
            self.graph = trace_in_place(self.function)
        else:
            self.graph()
