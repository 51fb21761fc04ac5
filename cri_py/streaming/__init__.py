"""The front of exec, attach and port-forward: it authenticates a connection and hands it to the pod's monitor."""
