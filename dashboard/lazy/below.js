// Content below the fold is requested when it scrolls into view, or when the button is pressed.

const shown = new WeakMap();

export default function (component) {
  const { data, parentElement: root, setTriggerValue } = component;
  const button = root.querySelector("button");
  button.textContent = data.label;
  if (shown.has(root)) return undefined;
  const ask = () => {
    watcher.disconnect();
    setTriggerValue("near", true);
  };
  const watcher = new IntersectionObserver((entries) => entries.some((one) => one.isIntersecting) && ask());
  watcher.observe(button);
  button.addEventListener("click", ask);
  shown.set(root, watcher);
  return () => {
    watcher.disconnect();
    shown.delete(root);
  };
}
