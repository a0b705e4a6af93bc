"""MLServer's runtime of the plain model."""

from pathlib import Path

from mlserver import MLModel
from mlserver.codecs import NumpyCodec, StringCodec
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput
from scorer import PlainScorer


class PlainRuntime(MLModel):
    """Decodes the columns and scores them."""

    async def load(self) -> bool:
        """Read the run."""
        self.scorer = PlainScorer(Path(self.settings.parameters.uri))
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Score a request."""
        columns = {}
        for column in payload.inputs:
            codec = StringCodec if column.datatype == "BYTES" else NumpyCodec
            columns[column.name] = list(codec.decode_input(column))
        num_rows = max(map(len, columns.values()))
        columns = {n: v * (num_rows if len(v) == 1 else 1) for n, v in columns.items()}
        scores = self.scorer.score(columns)
        output = ResponseOutput(name="score", shape=[len(scores)], datatype="FP32", data=scores)
        return InferenceResponse(model_name=self.name, model_version="1", outputs=[output])
