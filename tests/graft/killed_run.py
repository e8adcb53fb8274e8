"""A training that saves after every step and may be killed in the middle of one; run by test_resume.py.

python killed_run.py FOLDER STEPS DIE_BEFORE_STEP(-1: never) WRITE
"""

import os
import signal
import sys
from pathlib import Path

import torch
from torch import nn

from graftlib import Mapping, attach, trace
from graftlib_adapters import MergeNet


def main(folder, steps, die, write):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    source = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 4))
    target = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 4))
    x, y = torch.randn(64, 16, 6), torch.randint(0, 4, (64, 16))
    mapping = Mapping(trace(source, (x[0],)), trace(target, (x[0],)))
    mapping.link("0", "0", direction="both").link("2", "2")
    optimizer = torch.optim.AdamW([*target.parameters(), *source.parameters()], lr=1e-2)
    graft = attach(MergeNet(rank=4, write=write), mapping, cycle=3, total_steps=steps)
    path, start = folder / "checkpoint.pt", 0
    if path.exists():
        saved = torch.load(path, weights_only=True)
        start = saved["step"]
        source.load_state_dict(saved["source"])
        target.load_state_dict(saved["target"])
        optimizer.load_state_dict(saved["optimizer"])
        graft.load_state_dict(saved["graft"])
    graft.follow(optimizer)
    for i in range(start, steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(target(x[i % 64]), y[i % 64])
        loss = loss + nn.functional.cross_entropy(source(x[i % 64]), y[i % 64])
        loss.backward()
        if i == die:
            os.kill(os.getpid(), signal.SIGKILL)
        optimizer.step()
        with graft.settled():
            state = {"step": i + 1, "source": source.state_dict(), "target": target.state_dict()}
            state |= {"optimizer": optimizer.state_dict(), "graft": graft.state_dict()}
            torch.save(state, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)
    graft.detach()
    torch.save(
        {**target.state_dict(), **{f"s.{k}": v for k, v in source.state_dict().items()}},
        folder / "end.pt",
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
