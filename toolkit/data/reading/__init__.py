"""Where rows come from: files, saved data sets and the hub, as rows of named columns."""
