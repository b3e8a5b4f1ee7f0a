"""Peers that no package has, written in plain torch from their definitions, with our states."""

from __future__ import annotations

import torch


class OldAdamW(torch.optim.Optimizer):
    """AdamW of transformers 4, written in plain torch from its definition. transformers removed
    it."""

    decays_first = False

    def __init__(
        self,
        params,
        lr=1e-3,
        betas=(0.9, 0.999),
        eps=1e-6,
        weight_decay=0.0,
        correct_bias=True,
        no_deprecation_warning=False,
    ):
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
                "correct_bias": correct_bias,
            },
        )

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state.update(
                        step=0, exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p)
                    )
                state["step"] += 1
                t = state["step"]
                m, v = state["exp_avg"], state["exp_avg_sq"]
                m.mul_(beta1).add_(p.grad, alpha=1 - beta1)
                v.mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
                size = group["lr"]
                if group["correct_bias"]:
                    size *= (1 - beta2**t) ** 0.5 / (1 - beta1**t)
                if self.decays_first:
                    p.add_(p, alpha=-group["lr"] * group["weight_decay"])
                p.addcdiv_(m, v.sqrt().add_(group["eps"]), value=-size)
                if group["weight_decay"] > 0 and not self.decays_first:
                    p.add_(p, alpha=-group["lr"] * group["weight_decay"])


class OldAdamWeightDecay(OldAdamW):
    """transformers' AdamWeightDecay for TensorFlow, written the same way, without clipping."""

    decays_first = True

    def __init__(
        self,
        params,
        lr=1e-3,
        betas=(0.9, 0.999),
        eps=1e-7,
        weight_decay=0.0,
        clipnorm=None,
        global_clipnorm=None,
    ):
        super().__init__(params, lr, betas, eps, weight_decay)
        limits = {"clipnorm": clipnorm, "global_clipnorm": global_clipnorm}
        self.defaults.update(limits)
        for group in self.param_groups:
            group.update(limits)


class Lion(torch.optim.Optimizer):
    """Algorithm 2 of "Symbolic Discovery of Optimization Algorithms" (Chen et al. 2023), with the
    arguments and the counter that torch's optimizers have."""

    def __init__(
        self,
        params,
        lr=1e-4,
        betas=(0.9, 0.99),
        weight_decay=0,
        *,
        foreach=None,
        maximize=False,
        capturable=False,
        differentiable=False,
    ):
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "weight_decay": weight_decay,
                "maximize": maximize,
                "foreach": foreach,
                "capturable": capturable,
                "differentiable": differentiable,
            },
        )

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                grad = -p.grad if group["maximize"] else p.grad
                state = self.state[p]
                if not state:
                    state.update(
                        step=torch.zeros((), dtype=torch.get_default_dtype()),
                        exp_avg=torch.zeros_like(p),
                    )
                state["step"] += 1
                m = state["exp_avg"]
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(m.mul(beta1).add_(grad, alpha=1 - beta1).sign_(), alpha=-group["lr"])
                m.mul_(beta2).add_(grad, alpha=1 - beta2)
