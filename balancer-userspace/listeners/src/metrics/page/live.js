"use strict";
(() => {
  const PERIOD = 2000;
  const PATIENCE = 10000;
  const link = document.getElementById("link");
  const pause = document.getElementById("pause");
  let paused = false;
  let since = "";
  let timer = 0;

  const say = (text, stale) => {
    if (link.textContent !== text) link.textContent = text;
    document.body.classList.toggle("stale", stale);
  };

  // In place, so that focus, scroll, selection and a screen reader's position stay.
  const merge = (old, now) => {
    if (old.nodeType !== now.nodeType || old.nodeName !== now.nodeName || old.id !== now.id) {
      old.replaceWith(now);
      return;
    }
    if (old.nodeType !== Node.ELEMENT_NODE) {
      if (old.data !== now.data) old.data = now.data;
      return;
    }
    for (const { name } of [...old.attributes]) if (!now.hasAttribute(name)) old.removeAttribute(name);
    for (const { name, value } of now.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
    const [there, wanted] = [[...old.childNodes], [...now.childNodes]];
    wanted.forEach((node, index) => (there[index] ? merge(there[index], node) : old.append(node)));
    there.slice(wanted.length).forEach((node) => node.remove());
  };

  const refresh = async () => {
    const began = performance.now();
    try {
      const answer = await fetch(`/numbers${location.search}`, { cache: "no-store", signal: AbortSignal.timeout(PATIENCE) });
      const text = await answer.text();
      if (!answer.ok) throw new Error(text.trim());
      const page = new DOMParser().parseFromString(text, "text/html");
      if (paused) return;
      merge(document.querySelector("main"), page.querySelector("main"));
      document.title = page.title;
      since = "";
      say("Live", false);
    } catch (error) {
      since ||= new Date().toLocaleTimeString();
      if (!paused) say(`No answer since ${since} (${error.message}). The numbers are old.`, true);
    }
    next(performance.now() - began);
  };

  // A large page takes its time: never more than a tenth of it.
  const next = (took) => {
    clearTimeout(timer);
    if (!paused && !document.hidden) timer = setTimeout(refresh, Math.max(PERIOD, 10 * took));
  };

  pause.addEventListener("click", () => {
    paused = !paused;
    pause.setAttribute("aria-pressed", paused);
    if (paused) {
      clearTimeout(timer);
      say("Paused", true);
    } else {
      refresh();
    }
  });
  document.addEventListener("visibilitychange", () => {
    clearTimeout(timer);
    if (!document.hidden && !paused) refresh();
  });
  pause.hidden = false;
  say("Live", false);
  next(0);
})();
