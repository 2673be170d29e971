"""All that talks to Ray: cluster, actors, worker groups, adapters to Ray Tune."""
