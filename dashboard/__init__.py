"""The reading room: what was seen, shown. Run by `attnviz dashboard`, never imported by attnviz.

app, views          the pages; each is a file that Streamlit runs
frame, notices      what every page begins with; every bad state in words
shelf, compared     reading runs once for all readers; which of them a page compares
selection, epochs   which runs, which images, in which order: no Streamlit
charts, pictures    what is drawn by Altair, and by Pillow where a browser cannot
packing, overlap    what the components are sent, and what they compute: no Streamlit
components          of our own: gallery, dots, picker, pointer, upload, below
summaries, palettes what strangers wrote, cleaned; the colours of both themes
live, uploads       a run's model asked live; a stranger's picture decoded
"""
