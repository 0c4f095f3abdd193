// Links to the pages. What is carried along is read from the address when a link is used, so that
// a part of a page can change the address without drawing the links again.

const NARROW = 768; // below it the sidebar lies over the page

export default function (component) {
  const { data, parentElement: root, setTriggerValue } = component;
  const list = root.querySelector("ul");
  const links = data.pages.map((page) => link(page, data, setTriggerValue));
  list.replaceChildren(...links.map((one) => {
    const item = document.createElement("li");
    item.append(one);
    return item;
  }));
  return undefined;
}

function link(page, data, setTriggerValue) {
  const made = document.createElement("a");
  const icon = document.createElement("span");
  icon.className = "icon";
  icon.textContent = page.icon; // the font draws its name as a sign
  icon.setAttribute("aria-hidden", "true");
  made.append(icon, document.createTextNode(page.title));
  if (page.name === data.current) made.setAttribute("aria-current", "page");
  const follow = () => { made.href = address(page, data); };
  for (const kind of ["pointerenter", "focus", "pointerdown"]) made.addEventListener(kind, follow);
  follow();
  made.addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
    event.preventDefault();
    setTriggerValue("page", page.name);
    const close = window.innerWidth < NARROW && document.querySelector("[data-testid=stSidebarCollapseButton] button");
    if (close) close.click();
  });
  return made;
}

function address(page, { pages, carried }) {
  const known = pages.map((one) => one.name);
  const parts = location.pathname.split("/");
  if (known.includes(parts.at(-1))) parts.pop();
  const base = parts.join("/").replace(/\/$/, "");
  const now = new URLSearchParams(location.search);
  const kept = new URLSearchParams(carried.filter((name) => now.has(name)).map((name) => [name, now.get(name)]));
  const words = kept.toString();
  return `${base}/${page.first ? "" : page.name}${words ? `?${words}` : ""}`;
}
