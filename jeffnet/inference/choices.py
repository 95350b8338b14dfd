"""The choices of options on inference, for a command line that must not wait for NumPy."""

# Dtypes of vectors in a file.
VECTOR_DTYPES = ("float32", "float16")
# Ways to draw vectors in the plane, and what they are called.
PROJECTIONS = {"pca": "PCA", "tsne": "t-SNE"}
# Ways to explain what a model looks at.
EXPLANATIONS = ("grad-cam", "grad-cam++", "smoothgrad", "occlusion")
