"""The deep learning recommendation model as one module.

Shapes: B batch, N dense features, F sparse features, D embedding dim.
"""

from typing import Any

from torch import Tensor, nn

from fastdlrm.batch import SparseBatch
from fastdlrm.model.interaction import Interaction
from fastdlrm.model.lookup import Tables
from fastdlrm.model.table_projection import TableProjection


class DLRM(nn.Module):
    """Tables and bottom MLP, interaction, top MLP.

    Attributes:
        tables: The embedding tables.
        bottom_mlp: From N to D; None without dense features.
        table_projection: What makes narrow tables' vectors D long; None: they end in zeros.
        interaction: What joins their results.
        top_mlp: From the interaction's width to 1.

    Source: Naumov et al. 2019, arXiv:1906.00091.
    """

    tables: Tables

    def __init__(
        self,
        tables: Tables,
        bottom_mlp: nn.Module | None,
        interaction: Interaction,
        top_mlp: nn.Module,
        table_projection: TableProjection | None = None,
    ) -> None:
        super().__init__()
        self.tables = tables
        self.bottom_mlp = bottom_mlp
        self.table_projection = table_projection
        self.interaction = interaction
        self.top_mlp = top_mlp

    def forward(self, dense: Tensor, sparse: SparseBatch) -> Tensor:
        """Predict.

        Args:
            dense: Shape (B, N), float32; N may be 0.
            sparse: F features of B samples.

        Returns:
            Logits, shape (B,).
        """
        return self.head(dense, self.tables(sparse, dense.dtype))

    def head(self, dense: Tensor, pooled: Tensor) -> Tensor:
        """Everything after the lookup; the step trains the tables by the gradient of `pooled`.

        Args:
            dense: Shape (B, N).
            pooled: What `tables` returns, shape (B, F, D).

        Returns:
            Logits, shape (B,).
        """
        vector = None if self.bottom_mlp is None else self.bottom_mlp(dense)
        if not pooled.shape[1]:  # a batch without sparse features does not know its B
            pooled = pooled.new_empty(len(dense), 0, pooled.shape[2])
        if vector is not None:
            pooled = pooled.to(vector.dtype)
        if self.table_projection is not None:
            pooled = self.table_projection(pooled)
        logits: Tensor = self.top_mlp(self.interaction(vector, pooled))
        return logits.squeeze(1)

    def dense_parameters(self) -> dict[str, nn.Parameter]:
        """Parameters by name but for the tables': all that the dense optimizer trains."""
        return {n: p for n, p in self.named_parameters() if not n.startswith("tables.")}

    def state_tensors(self) -> dict[str, Any]:
        """Live tensors by name, each table on its own: what a checkpoint keeps of the model.

        Copying into one changes the model. The names do not depend on how tables are stacked, nor
        on the ranks they lie on; of a table on several ranks it is this rank's part.
        """
        dense = {k: v for k, v in self.state_dict().items() if not k.startswith("tables.")}
        tables = {f"tables.{name}": x for name, x in self.tables.state_tensors().items()}
        weights = {f"pooling_weights.{n}": x for n, x in self.tables.pooling_weights().items()}
        return {**dense, **tables, **weights}
