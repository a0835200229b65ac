"""The device API: Classifier.load(bundle).predict(image), over one engine a file in backends/."""
