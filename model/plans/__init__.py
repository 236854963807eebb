"""Plans: how a model's weights are spread over its layers, what that costs, and which plan fits a device."""

from model.plans.arithmetic import LayerCost, PlanCost, plan_cost
from model.plans.loss import best_depth, loss_proxy
from model.plans.makers import make_plan
from model.plans.search import Deployment, Device, Estimate, FoundPlan, estimate, find_plan
from model.plans.shapes import SHAPES, Shape, Size, plan_of
from model.plans.sharing import with_repeated_layers, with_shared_kv

__all__ = [
    "SHAPES",
    "Deployment",
    "Device",
    "Estimate",
    "FoundPlan",
    "LayerCost",
    "PlanCost",
    "Shape",
    "Size",
    "best_depth",
    "estimate",
    "find_plan",
    "loss_proxy",
    "make_plan",
    "plan_cost",
    "plan_of",
    "with_repeated_layers",
    "with_shared_kv",
]
