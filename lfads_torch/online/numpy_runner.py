"""Run a causal LFADS model bin by bin with NumPy alone; this file works wherever it is copied.

runner = Runner("model.npz")          # that `lfads export RUN model.npz` wrote
rates = runner.step(counts)["rates"]  # of this bin; NaN in counts marks a missing channel
"""

import json
from typing import Any

import numpy as np


class _Cell:
    """A clipped GRU: input, state and a constant 1 in one vector, so that gates are one product."""

    def __init__(self, w: Any, name: str, clip: float) -> None:
        self.w_zr, self.w_n, self.clip = w[f"{name}_zr"], w[f"{name}_n"], np.float32(clip)
        n, self.v = len(self.w_n), np.ones(self.w_n.shape[1], np.float32)
        self.x, self.h1 = np.split(self.v, [len(self.v) - n - 1])
        self.h, self.zr = self.h1[:-1], np.empty(2 * n, np.float32)
        self.n, self.old = np.empty((2, n), np.float32)

    def step(self) -> None:
        h, n, zr = self.h, self.n, self.zr
        np.tanh(np.dot(self.w_zr, self.v, out=zr), out=zr)
        zr *= 0.5  # sigmoid(a) = tanh(a / 2) / 2 + 1 / 2, and w_zr makes a / 2
        zr += 0.5
        self.old[:] = h
        h *= zr[len(h) :]
        np.tanh(np.dot(self.w_n, self.v, out=n), out=n)
        np.multiply(np.subtract(self.old, n, out=h), zr[: len(h)], out=h)
        np.minimum(np.maximum(np.add(h, n, out=h), -self.clip, out=h), self.clip, out=h)


class Runner:
    """One stream of a causal model; `meta` says what the file was made of."""

    def __init__(self, path: Any) -> None:
        with np.load(path, allow_pickle=False) as file:
            self.w = w = {name: file[name] for name in file.files}
        self.meta = meta = json.loads(str(w["meta"]))
        cells = [_Cell(w, name, meta["clip"] or np.inf) for name in meta["nets"]]
        self.ci, self.con, self.gen, *self.ic = cells  # without a controller, two have no units
        # The controller reads the factors, and the generator the inputs, where they are made.
        self.ci_t, self.fac = np.split(self.con.x, [len(self.ci.h)])
        self.u, self.ext = np.split(self.gen.x, [len(w["co"])])
        self.x, self.lag, self.n = self.ci.x, w["initial/state_lag"].copy(), meta["inputs"]["x"][1]
        # Counts and external inputs of the first bins, from which the IC encoder infers g0.
        self.first = np.zeros((meta["first_bins"], len(self.x) + len(self.ext)), np.float32)
        self.out = {"factors": self.fac, "gen_states": self.gen.h, "inputs": self.u}
        self.out |= {name: np.zeros(n, np.float32) for name, n in meta["sizes"].items()}
        self.states = {"ci": self.ci.h, "con": self.con.h, "gen": self.gen.h, "fac": self.fac}
        # And the features of the last bins, newest first, and a constant 1.
        self.states |= {"first": self.first, "lag": self.lag, "dec": np.ones(len(w["dec"].T), "f4")}
        self.reset()

    def reset(self) -> None:
        """Forget all bins."""
        for array in (*self.out.values(), self.states["dec"][:-1]):
            array[:] = np.nan
        self.load_state({k[14:]: v for k, v in self.w.items() if k.startswith("initial/state_")})

    def state(self) -> dict[str, Any]:
        """Return copies, from which `load_state` goes on."""
        return {"t": self.t, **{name: array.copy() for name, array in self.states.items()}}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.t = int(state.get("t", 0))
        for name in self.states.keys() & state.keys():
            self.states[name][...] = state[name]

    def step(self, counts: Any, ext: Any = None) -> dict[str, Any]:
        """Take counts (N,), and inputs (E,). What it returns changes with the next call."""
        ext = np.zeros_like(self.ext) if ext is None else np.asarray(ext)
        if np.shape(counts) != (self.n,) or ext.shape != self.ext.shape:
            of = f"counts of shape {np.shape(counts)} and external inputs of {ext.shape}"
            raise ValueError(f"{of}; the model takes ({self.n},) and {self.ext.shape}")
        x = np.where(np.isnan(counts), np.float32(0), counts)
        if (bad := np.flatnonzero(~((x >= self.meta["least"]) & (x < np.inf)))).size:
            raise ValueError(f"channel {bad[0]} is {x[bad[0]]}; legal: {self.meta['support']}, NaN")
        if "read" in self.w:  # a model that was aligned to a day
            x = self.w["align"] @ np.maximum(self.w["read"] @ np.append(x, 1), self.w["floor"])
        self.x[:], self.ext[:], self.t = x, ext, self.t + 1
        if self.t <= len(self.first):
            self.first[self.t - 1] = np.concatenate([self.x, self.ext])
            return self._begin() if self.t == len(self.first) else self.out
        self.ci.step()
        self.lag[:-1], self.lag[-1] = self.lag[1:], self.ci.h
        self.ci_t[:] = self.lag[0]
        return self._decode()

    def _begin(self) -> dict[str, Any]:
        x, exts = np.split(self.first, [len(self.x)], axis=1)
        for cell, h0, bins in zip(self.ic, self.w["ic_h0"], (x, x[::-1]), strict=True):
            cell.h[:] = h0
            for cell.x[:] in bins:
                cell.step()
        self.gen.h[:] = self.w["g0"] @ np.concatenate([self.ic[0].h, self.ic[1].h1])
        self.fac[:], self.ci_t[:] = self.w["fac"] @ self.gen.h, 0
        for self.ext[:] in exts:
            self.states["dec"][:-1] = np.nan  # what came before the last of them is not read
            self._decode()
        return self.out

    def _decode(self) -> dict[str, Any]:
        w, kept = self.w, self.states["dec"]
        self.con.step()
        np.dot(w["co"], self.con.h1, out=self.u)
        self.gen.step()
        np.dot(w["fac"], self.gen.h, out=self.fac)
        p = (w["out"] @ self.fac + w["out_bias"]).reshape(self.meta["n_params"], -1)
        if len(p) == 3:  # zero-inflated gamma
            s = np.maximum(1 / (1 + np.exp(-p)), 1e-5)
            p = s[2:] * (s[0] * w["scale"][0] / (s[1] * w["scale"][1]) + w["loc"])
        self.out["rates"][:] = np.exp(p[0]) if self.meta["is_log"] else p[0]
        self.out["behavior"][:] = w["beh"] @ np.append(self.out[self.meta["behavior_from"]], 1)
        kept[:-1] = np.append(self.out[self.meta["features"]], kept)[: len(kept) - 1]
        np.dot(w["dec"], kept, out=self.out["decoded"])
        return self.out
