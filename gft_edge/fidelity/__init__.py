"""How far one artifact is from another: outputs compared, bundles verified, classifiers measured."""
