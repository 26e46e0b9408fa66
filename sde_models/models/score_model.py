"""A network and a forward SDE as a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from sde_models._utils.shapes import Time, per_sample
from sde_models._utils.user_networks import NetworkCall, check_shape, shape_of_network
from sde_models.models.base import Model, check_network
from sde_models.models.nodes import ModelNodes, NetworkNodes
from sde_models.models.predictions import Prediction, find_prediction
from sde_models.sdes.base import SDE
from sde_models.sdes.gaussian import GaussianSDE


class ScoreModel(Model):
    """A network and the SDE it was trained for.

    The network is called as ``network(t, x, **cond)`` with ``t`` of shape ``(B,)`` and must
    return the shape of ``x``. Its inputs are copies in its own dtype, which it may change in place;
    preconditioning is computed in the dtype of the state.

    Args:
        network: Any ``torch.nn.Module`` with that call.
        sde: Forward SDE. On an :class:`~sde_models.SDE` without a Gaussian kernel only
            ``prediction="score"`` has a meaning.
        prediction: What the network's output stands for: "eps", which is the default, "x0", "v",
            "score", or "velocity", that of the probability flow, which flow matching learns.
        preconditioning: "edm" scales input, output and time as in Karras et al. 2022. The
            output then is the residual of x0, and ``prediction`` is left out.
        event_shape: Shape of one sample; any other raises ValueError. That of the network's own
            attribute ``event_shape`` if None; without both any shape is taken.
        data_range: Lowest and highest number of the training data, saved with the model: black and
            white in pictures, and the range of the levels of :func:`~sde_models.bits_per_dim`.
            These use -1 and 1 if it is None, for not known.

    Raises:
        ValueError: For unknown names, a combination without a meaning, an empty range, or an event
            shape that is not the network's.

    Example:
        >>> network = sm.nn.ResidualNetwork((2,), width=16, depth=1)
        >>> model = ScoreModel(network, sm.VPSDE(), prediction="v")
        >>> model.score(0.5, torch.zeros(3, 2)).shape
        torch.Size([3, 2])
    """

    def __init__(
        self,
        network: nn.Module,
        sde: SDE,
        prediction: str | None = None,
        *,
        preconditioning: str | None = None,
        event_shape: tuple[int, ...] | None = None,
        data_range: tuple[float, float] | None = None,
    ) -> None:
        network = check_network(network)
        super().__init__(sde, shape_of_network(network, event_shape))
        self.network = network
        self.data_range = data_range
        data_std = getattr(sde, "data_std", 1.0)
        self.prediction: Prediction = find_prediction(prediction, preconditioning, data_std)
        self.predicts_score = prediction == "score"
        if not isinstance(sde, GaussianSDE) and not self.predicts_score:
            raise ValueError(
                f"{type(sde).__name__} has no alpha and sigma, so only prediction='score' has a "
                f"meaning; got prediction={prediction!r}, preconditioning={preconditioning!r}"
            )

    def score(self, t: Time, x: Tensor, **cond: Any) -> Tensor:
        if not self.predicts_score:
            return super().score(t, x, **cond)
        t = self._checked(t, x)
        return self._run(t.expand(x.shape[0]), x, cond)

    def denoise(self, t: Tensor, x: Tensor, **cond: Any) -> tuple[Tensor, Tensor]:
        scales = self._scales(t, x)
        inputs = self.prediction.network_input(t.expand(x.shape[0]), x, *scales[:2])
        return self.prediction.denoise(self._run(*inputs, cond), x, *scales)

    def at_nodes(self, times: Tensor, like: Tensor, cond: Mapping[str, Any]) -> ModelNodes:
        if type(self).denoise is not ScoreModel.denoise:  # a subclass has its own estimates
            return super().at_nodes(times, like, cond)
        return NetworkNodes(self, times, like, cond)

    def output(self, t: Tensor, x: Tensor, **cond: Any) -> Tensor:
        """The network's own output at noised samples, as a loss compares it to a target."""
        inputs = self.prediction.network_input(t.expand(x.shape[0]), x, *self._scales(t, x)[:2])
        return self._run(*inputs, cond)

    def target(self, t: Tensor, x0: Tensor, eps: Tensor) -> Tensor:
        """The regression target of :meth:`output` for data ``x0`` with noise ``eps``."""
        return self.prediction.target(x0, eps, *self._scales(t, x0))

    def _scales(self, t: Tensor, x: Tensor) -> list[Tensor]:
        """What the prediction needs of the SDE at the times; first alpha and sigma."""
        sde = self._gaussian()
        return [per_sample(getattr(sde, name)(t), x) for name in self.prediction.scales]

    def _run(self, t: Tensor, x: Tensor, cond: Mapping[str, Any]) -> Tensor:
        return check_shape(NetworkCall(self.network)(t, x, cond), x)
