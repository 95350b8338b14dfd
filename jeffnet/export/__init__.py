"""Models as files for other runtimes.

    from jeffnet.export import export_model

    export_model("b0.onnx", (model, variables), "efficientnet_b0")

`jeffnet.export.run` runs what was exported.
"""
