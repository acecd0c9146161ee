"""`python -m bridge` is the command `edge-bridge`."""

from bridge.cli import main

raise SystemExit(main())
