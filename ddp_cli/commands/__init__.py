"""The subcommands: flags in, one call below, a rendered result out."""
