"""The dashboard over run folders. Started by `attnviz dashboard`, never imported by attnviz.

app, views              pages; each is a file that Streamlit runs
controls, notices       controls that all pages share; messages for every state that cannot be shown
run_cache, chosen_runs  cached reading of runs; the runs that a page compares
selection, epochs       which runs and images, in which order; without Streamlit
charts, pictures        Altair charts; Pillow pictures where a browser cannot draw
overlap                 what the components compute, in numpy; their data: attnviz.figures.packing
components              own components: gallery, dot plot, picker, pointer, upload, lazy
summaries, palettes     summaries with wrong types removed; the colours of both themes
live, uploads           live forward passes of a run's model; decoding of uploaded pictures
"""
