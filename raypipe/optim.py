"""AdamW, without torch's compiler."""

from __future__ import annotations

from inspect import unwrap

import torch


class AdamW(torch.optim.AdamW):
    """`torch.optim.AdamW` to the bit, whose first use does not import `torch._dynamo`.

    torch's own methods are wrapped to keep its compiler out of them, and the wrappers import it to do so: 1.6 s of a
    processor, in every worker, before the first step of a sweep that compiles nothing.
    """

    add_param_group = unwrap(torch.optim.AdamW.add_param_group)
    zero_grad = unwrap(torch.optim.AdamW.zero_grad)
    state_dict = unwrap(torch.optim.AdamW.state_dict)
    load_state_dict = unwrap(torch.optim.AdamW.load_state_dict)
    step = torch.no_grad()(unwrap(torch.optim.AdamW.step))
