"""What TensorRT makes of a bundle's graph, from an engine that loads here or from the parsed network."""

from __future__ import annotations

from gft_edge.bundle.specs import Say
from gft_edge.bundle.store import Bundle
from gft_edge.errors import GftEdgeError
from gft_edge.nvidia.cuda import open_cuda
from gft_edge.nvidia.engines import deserialized, engine_for, host_of
from gft_edge.nvidia.layer_report import LayerReport, report_of
from gft_edge.nvidia.layers import engine_layers, network_layers
from gft_edge.nvidia.library import builder_library, installed, parse


def inspect_graph(bundle: Bundle, say: Say) -> LayerReport:
    """Report on the layers of a bundle for TensorRT. Without an engine that loads here, `say` why not.

    Raises UsageError where no TensorRT is installed, and for a graph that it does not parse.
    """
    manifest, graph = bundle.manifest, bundle.artifact_path
    # The builder owns the network.
    network, _builder, _ = parse(builder_library(), graph.read_bytes(), graph)
    asked = network_layers(network)
    digest = manifest.artifact.sha256
    try:
        cuda = open_cuda()
        engine, library = engine_for(
            bundle.folder, manifest.engines, digest, ("logits",), installed(), host_of(cuda)
        )
    except GftEdgeError as error:
        say(f"the network as TensorRT parses it, for no engine loads here: {error}")
        return report_of(asked, manifest.model, "parsed network")
    loaded = deserialized(bundle.folder, engine, library, cuda, library.log())
    form = library.module.LayerInformationFormat.JSON
    text = loaded.create_engine_inspector().get_engine_information(form)
    return report_of(engine_layers(text), manifest.model, "engine", asked)
