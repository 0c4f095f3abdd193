// A reader's own image: its middle square, at the model's size, leaves this machine; nothing else.
// The server validates all of it again: data from a component is untrusted.

const shown = new WeakMap();

export default function (component) {
  const { data, parentElement: root, setStateValue } = component;
  const upload = shown.get(root) ?? build(root);
  shown.set(root, upload);
  Object.assign(upload, { limits: data, send: (value) => setStateValue("picture", value) });
  return () => shown.delete(root);
}

function build(root) {
  const find = (name) => root.querySelector(name);
  const upload = { input: find("input"), words: find(".words"), clear: find(".clear") };
  upload.input.addEventListener("change", () => take(upload));
  upload.clear.addEventListener("click", () => drop(upload));
  return upload;
}

async function take(upload) {
  const file = upload.input.files[0];
  if (!file) return;
  const { bytes, formats } = upload.limits;
  if (file.size > bytes) return say(upload, `That file has ${(file.size / 1e6).toFixed(1)} MB; at most ${(bytes / 1e6).toFixed(1)} MB are taken.`);
  if (!formats.includes(file.type)) return say(upload, `That is no ${formats.map((f) => f.split("/")[1].toUpperCase()).join(", ")}.`);
  try {
    upload.send(await squared(file, upload.limits.side));
  } catch {
    return say(upload, "That file cannot be read as a picture.");
  }
  say(upload, "Its middle square is shown below.");
  upload.clear.hidden = false;
}

async function squared(file, side) {
  const picture = await createImageBitmap(file);
  const edge = Math.min(picture.width, picture.height);
  const canvas = Object.assign(document.createElement("canvas"), { width: side, height: side });
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, (picture.width - edge) / 2, (picture.height - edge) / 2, edge, edge, 0, 0, side, side);
  return canvas.toDataURL("image/png").split(",")[1];
}

function say(upload, words) {
  upload.words.textContent = words;
}

function drop(upload) {
  upload.input.value = "";
  upload.clear.hidden = true;
  say(upload, "");
  upload.send(null);
}
