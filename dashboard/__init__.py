"""The dashboard over run folders. Started by `attnviz dashboard`, never imported by attnviz.

app, views              pages; each is a file that Streamlit runs
controls, notices       controls that all pages share; messages for every state that cannot be shown
run_cache, chosen_runs  cached reading of runs; the runs that a page compares
selection, epochs       which runs and images, in which order; without Streamlit
image_filters           controls that choose images; image_pages: pages of their tiles; named_views
run_table, boards       tables of runs, and of variants × metrics; head_stats: what heads do
charts                  Altair charts
overlap                 what the components compute, in numpy; their data: attnviz.figures.packing
components              own components: gallery, table, explorer, dot plot, picker, pointer, upload,
                        theme, lazy
summaries, palettes     summaries with wrong types removed; the colours of both themes
live, uploads           live forward passes of a run's model; decoding of uploaded pictures
"""
